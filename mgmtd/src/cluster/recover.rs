//! An operator's word on a chain that is down (R29): serve from a target that was taken out before the last ones were lost.

use catena_proto::ids::*;
use catena_proto::pb::{RecoverChainReply, RecoverChainRequest};
use catena_proto::routing::{NodeState, PublicState, wide_id};
use catena_proto::rpc::Failure;
use catena_proto::status::Status;

use super::Cluster;
use crate::chain::{ChainState, state_name};
use crate::changes::{Changes, Event};

impl Cluster {
    /// Makes the named target the only `lastsrv` of its chain; it serves as soon as its service, knowing this, says that it can. That
    /// it is known matters: only a target that sees itself as lastsrv says whether its contents are a mixture from an unfinished
    /// resync. Also gives the chain as it was.
    pub fn recover_chain(&self, request: &RecoverChainRequest) -> Result<(Changes, String), Failure> {
        let (id, target) = (ChainId(request.chain), TargetId(request.target));
        let mut changes = Changes::default();
        let chain = self
            .chain_state(&changes, id)
            .ok_or_else(|| Failure::new(Status::NotFound, format!("chain {id} is not there")))?;
        let before = chain.to_string();
        let refuse = |why: String| Err(Failure::new(Status::Invalid, format!("chain {id}: {why}")));
        let Some(member) = chain.members.iter().find(|member| member.id == target) else {
            return refuse(format!("{target} is not one of its targets ({chain})"));
        };
        if !request.accept_data_loss {
            return refuse(
                "what was written after this target was taken out is lost; say that you accept that".into(),
            );
        }
        let lastsrv: Vec<TargetId> = chain
            .members
            .iter()
            .filter(|member| member.state == PublicState::Lastsrv)
            .map(|member| member.id)
            .collect();
        // Said before, and carried out.
        if member.state == PublicState::Serving || lastsrv == [target] {
            return Ok((changes, before));
        }
        if let Some(serving) = chain.members.iter().find(|member| member.state == PublicState::Serving) {
            return refuse(format!("{} serves it; there is nothing to recover", serving.id));
        }
        if lastsrv.contains(&target) {
            return refuse(format!(
                "{target} has everything already (it is {}), and serves when its node returns with its disk",
                state_name(member.state)
            ));
        }
        self.check_contents(target)?;

        let version = ChainVersion(chain.version.0 + 1);
        let mut after = ChainState { version, members: Vec::with_capacity(chain.members.len()) };
        let mut named = *member;
        (named.state, named.joined_at) = (PublicState::Lastsrv, version);
        after.members.push(named);
        for other in chain.members.iter().filter(|other| other.id != target) {
            let mut other = *other;
            if other.state == PublicState::Lastsrv {
                other.state = PublicState::Offline;
            }
            after.members.push(other);
        }
        // Stable: waiting before offline, as everywhere (R26).
        after.members.sort_by_key(|member| match member.state {
            PublicState::Lastsrv => 0,
            PublicState::Waiting => 1,
            _ => 2,
        });
        let dropped = lastsrv.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(", ");
        changes.events.push(Event::Recovered { chain: id, target, dropped });
        changes.events.push(Event::Chain { chain: id, before: before.clone(), after: after.to_string() });
        self.set_chain(&mut changes, id, &after);
        Ok((changes, before))
    }

    /// A target without contents of its own would serve an empty chain.
    fn check_contents(&self, id: TargetId) -> Result<(), Failure> {
        let Some(target) = self.info.targets.get(&id) else { return Ok(()) };
        let refuse = |why: &str| {
            let message = format!("{id} at node {} holds nothing of the chain: {why}", target.node);
            Err(Failure::new(Status::Invalid, message))
        };
        if target.joined_at == ChainVersion(0) {
            return refuse("its disk was replaced by an empty one, which was never brought up to date");
        }
        let node = self.info.nodes.get(&target.node);
        let disk =
            node.and_then(|node| node.disks.iter().find(|disk| wide_id(&disk.id) == Some(target.disk.0)));
        let up = node.is_some_and(|node| node.state() == NodeState::Up);
        match disk {
            None if up => refuse("its node runs without the disk; start it with that"),
            Some(disk) if up && disk.failed => refuse("its disk has failed"),
            Some(_) if up && !self.is_original(&Changes::default(), id) => {
                refuse("its disk was formatted again")
            }
            _ => Ok(()),
        }
    }

    /// The answer about a chain that was as in `before`.
    pub fn recovered(&self, id: ChainId, before: String) -> RecoverChainReply {
        let after = self.chain_state(&Changes::default(), id).map(|chain| chain.to_string());
        RecoverChainReply { routing_version: self.info.version.0, before, after: after.unwrap_or_default() }
    }
}
