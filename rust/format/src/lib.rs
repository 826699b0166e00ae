//! A `.mnn` file in and out: schema, verified reading, writing, weight payloads.
//!
//! This crate knows bytes. It must not compute: no quantizer, no operator lives here.
