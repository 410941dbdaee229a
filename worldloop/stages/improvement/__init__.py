"""How `improve_policy` makes a better policy: one method a file."""
