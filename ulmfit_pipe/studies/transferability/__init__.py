"""How transferable layers are: the experiment of Yosinski et al. 2014."""
