"""What collaborations do differently from `generic`."""

#: Where the PanDA service for all sciences (DOMA) keeps its transformations.
DOMA_URLS = ("https://storage.googleapis.com/drp-us-central1-containers", "https://pandaserver-doma.cern.ch/trf/user")
