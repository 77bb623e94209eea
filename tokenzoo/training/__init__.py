"""How the embedded models are trained. Nothing at run time imports this package."""
