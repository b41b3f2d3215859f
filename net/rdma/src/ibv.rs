//! The verbs of real devices: libibverbs, loaded when it is asked for.
//!
//! Nothing is linked, and nothing is generated from its header: a program with this in it starts on machines without rdma-core, and
//! [`provider`] then says what to install. `sys` has the records by hand (compared with the header by a test), `library` the
//! functions. The objects of the library are owned in the order in which it wants them destroyed:
//!
//! ```text
//!  Context (open device) <- Domain (protection domain) <- Memory (region)
//!                                                      <- RcEndpoint: queue pair, completion queue, channel
//! ```
//!
//! libibverbs is thread-safe (ibv_open_device(3) and on): all its calls on one object may be made from several threads at once. That is
//! why the types here are `Send` and `Sync`.

#![allow(unsafe_code)]

mod absence;
mod address;
mod describe;
mod device;
mod endpoint;
mod events;
#[cfg(test)]
mod layout;
mod library;
mod memory;
mod post;
// Fields that nothing reads are there for the places of those behind them.
#[allow(dead_code)]
mod sys;

use std::sync::Arc;

use crate::error::VerbsError;
use crate::provider::{Device, DeviceInfo, Provider};
use device::{Context, Domain, List};
use library::Functions;
pub use post::Posting;

/// libibverbs, loaded.
struct Ibv {
    functions: &'static Functions,
    posting: Posting,
}

/// The devices of this machine. Loads libibverbs when it is first called.
///
/// # Errors
/// [`VerbsError::NoLibrary`] and [`VerbsError::OldLibrary`]. That there are no devices is found by its methods.
pub fn provider() -> Result<Arc<dyn Provider>, VerbsError> {
    provider_with(Posting::Calls)
}

/// As [`provider`], with a choice of how work is posted: for tests, and drivers whose newer way does not work.
///
/// # Errors
/// As [`provider`].
pub fn provider_with(posting: Posting) -> Result<Arc<dyn Provider>, VerbsError> {
    Ok(Arc::new(Ibv { functions: library::functions()?, posting }))
}

impl Provider for Ibv {
    /// Devices that cannot be opened are left out, with a warning, unless there is no other.
    fn devices(&self) -> Result<Vec<DeviceInfo>, VerbsError> {
        let list = List::get(self.functions)?;
        let (mut found, mut failed) = (Vec::new(), None);
        for index in 0..list.len() {
            match Context::open(&list, index).and_then(|context| describe::device(&context)) {
                Ok(info) => found.push(info),
                Err(error) => {
                    tracing::warn!("RDMA device {} is left out: {error}", list.name(index));
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Device>, VerbsError> {
        let list = List::get(self.functions)?;
        let Some(index) = (0..list.len()).find(|&index| list.name(index) == name) else {
            let known: Vec<String> = (0..list.len()).map(|index| list.name(index)).collect();
            return Err(VerbsError::UnknownDevice { name: name.to_owned(), known: known.join(", ") });
        };
        let domain = Domain::new(Context::open(&list, index)?)?;
        Ok(Arc::new(device::RcDevice { domain: Arc::new(domain), posting: self.posting }))
    }
}
