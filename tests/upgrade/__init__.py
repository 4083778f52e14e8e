"""Files of every schema that there has been: this program opens them, or says what to do."""
