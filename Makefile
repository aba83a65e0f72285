PYTHON ?= python3

.PHONY: demo test lint kernels comfy browser

demo:
	$(PYTHON) bootstrap.py demo

test:
	$(PYTHON) bootstrap.py test

lint:
	$(PYTHON) bootstrap.py lint

kernels:
	$(PYTHON) bootstrap.py kernels

comfy:
	$(PYTHON) bootstrap.py comfy

browser:
	$(PYTHON) bootstrap.py browser
