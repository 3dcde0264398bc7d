"""Audits of one model: endpoints per item, and what is measured beside them."""

REV = 1
