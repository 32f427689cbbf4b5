//! The data plane of **vvu**: from a running ring to moved bytes.
