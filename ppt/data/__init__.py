"""What goes in: data sets, synthesis, batches."""
