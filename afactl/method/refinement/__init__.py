"""Refiners of maps along the edges of a photo: PAR, PAMR, dense CRF."""
