"""The tests that test.py loads, by subject"""
