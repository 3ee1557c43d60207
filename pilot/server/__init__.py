"""The PanDA client: neutral values, two codecs (v1, legacy), authentication, retries."""
