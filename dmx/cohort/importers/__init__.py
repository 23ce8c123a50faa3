"""Cohorts that other tools describe, turned into ours."""
