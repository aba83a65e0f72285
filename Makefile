PYTHON ?= python3

.PHONY: demo test lint

demo:
	$(PYTHON) bootstrap.py demo

test:
	$(PYTHON) bootstrap.py test

lint:
	$(PYTHON) bootstrap.py lint
