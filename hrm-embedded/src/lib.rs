//! Solving at the edge.
