//! How files pack trits.
