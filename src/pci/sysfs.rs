//! Functions as Linux shows them.
