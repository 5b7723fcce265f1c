"""What people read: pictures of a plan, tables, figures with their units."""
