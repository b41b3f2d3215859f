//! The period of records that mutations are sent in (see `crate::run`).

use catena_proto::pb;

use crate::access::Caller;
use crate::error::OpError;
use crate::op::Query;
use crate::run::current_period;
use crate::tx::Tx;

impl Query for pb::PeriodRequest {
    type Reply = pb::PeriodReply;
    const NAME: &'static str = "period";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn answer(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::PeriodReply, OpError> {
        let period = current_period(tx, u128::from(caller.client.0)).await?;
        // On the wire 0 says that nothing is known.
        Ok(pb::PeriodReply { period: period.wrapping_add(1), fresh_ms: 0 })
    }
}
