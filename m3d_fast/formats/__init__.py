"""Files of labelled images in the forms that others read and write."""
