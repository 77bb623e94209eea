"""The methods that ship with tokenzoo, one file each, written exactly as a third party would write them."""
