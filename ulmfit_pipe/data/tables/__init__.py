"""Files of any kind -> tables of texts and labels."""
