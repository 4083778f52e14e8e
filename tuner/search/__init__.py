"""Chooses the next point of a finite space to run; must not run or store trials."""
