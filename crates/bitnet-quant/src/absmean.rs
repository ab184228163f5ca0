//! How real weights become trits.
