//! What an operation is: a function of a transaction and a request. It knows no network, and every attempt starts from nothing.

use std::future::Future;
use std::time::Duration;

use catena_proto::pb;

use crate::access::Caller;
use crate::error::OpError;
use crate::tx::Tx;

/// How old the state may be that a query is answered from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Age {
    /// Everything acknowledged before it was asked is in it, unless the operator allows less.
    Newest,
    /// It informs people, or looks at everything bit by bit: a second does not matter.
    Second,
}

impl Age {
    /// What the store is told, given what the operator allows for all.
    pub fn staleness(self, allowed: Duration) -> Option<Duration> {
        match self {
            Age::Newest => (!allowed.is_zero()).then_some(allowed),
            Age::Second => Some(allowed.max(Duration::from_secs(1))),
        }
    }
}

/// An operation that only reads.
pub trait Query: Send + Sync {
    /// Its answer.
    type Reply: Send;
    /// For logs and metrics.
    const NAME: &'static str;
    /// How old its answer may be.
    const AGE: Age = Age::Newest;
    /// Who asks.
    fn caller(&self) -> Option<&pb::Caller>;
    /// The answer.
    fn answer(
        &self,
        tx: &mut Tx<'_>,
        caller: &Caller,
    ) -> impl Future<Output = Result<Self::Reply, OpError>> + Send;
}

/// An operation that changes something. An attempt that is refused has changed nothing, because it is not committed.
pub trait Mutation: Send + Sync {
    /// Its answer, recorded under the request id in the same transaction.
    type Reply: prost::Message + Default + Send;
    /// For logs and metrics; stored in idempotency records.
    const NAME: &'static str;
    /// Who asks.
    fn caller(&self) -> Option<&pb::Caller>;
    /// Makes the change and answers.
    fn apply(
        &self,
        tx: &mut Tx<'_>,
        caller: &Caller,
    ) -> impl Future<Output = Result<Self::Reply, OpError>> + Send;
}
