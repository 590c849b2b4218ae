"""The papers' tables and figures as commands: runs, results beside the published ones, pages."""
