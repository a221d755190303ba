"""Pages, figures and the index; notebooks run through papermill."""
