PYTHON ?= python3

.PHONY: demo test lint comfy browser

demo:
	$(PYTHON) bootstrap.py demo

test:
	$(PYTHON) bootstrap.py test

lint:
	$(PYTHON) bootstrap.py lint

comfy:
	$(PYTHON) bootstrap.py comfy

browser:
	$(PYTHON) bootstrap.py browser
