"""What is made of a trained twin: tables, comparisons, reports and figures."""
