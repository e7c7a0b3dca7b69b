"""The same small training in this and other libraries, each as its documentation says; see reliability.py."""
