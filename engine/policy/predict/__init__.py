"""Which experts will be needed next; must not know what is resident."""
