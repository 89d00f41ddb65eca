//! What a host that does DMA into files does, and what is on it.

pub mod probe;
