//! The scalar specification.
