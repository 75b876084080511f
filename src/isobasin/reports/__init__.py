"""What is shown of a measurement: tables, figures and a page, from its records alone."""
