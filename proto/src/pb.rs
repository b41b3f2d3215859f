//! The control plane's messages and gRPC skins, generated from `schema/*.proto`; the schema is their documentation.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("catena.v1");
