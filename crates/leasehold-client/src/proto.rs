//! The control plane's messages and calls, generated from `proto/leasehold.proto`, where they are documented.
#![expect(missing_docs, reason = "generated; the documentation is in the proto file")]
#![allow(clippy::allow_attributes_without_reason, reason = "generated code allows without reasons")]

tonic::include_proto!("leasehold.v1");

/// The encoded descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/leasehold.descriptors"));
