//! The counter-examples that made the rules, as histories. Each is played twice: with the shipped rules nothing breaks, and with the one
//! rule broken that it demands, something does. T-numbers are those of `docs/replication-states.md`.

mod world;

use catena_craq::mutant::{Mutant, with};
use catena_craq::{Msg, ReadDecision};
use world::{Action, Packet, Violation, Wire, World};

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

type Told = Result<(), Violation>;

/// Words to tell a history with.
struct Story(World);

impl Story {
    fn of(replicas: usize, writes: usize) -> Story {
        Story(World::new(replicas, writes))
    }
    fn act(&mut self, action: Action) -> Told {
        self.0.apply(&action)
    }
    fn newest(&self) -> usize {
        self.0.views.len() - 1
    }
    fn write(&mut self, write: usize) -> Told {
        let view = self.newest();
        self.act(Action::Write { write, view })
    }
    /// Everything that the node is staging becomes durable.
    fn durable(&mut self, node: usize) -> Told {
        while let Some(&id) = self.0.nodes[node].staging.iter().next() {
            self.act(Action::Staged(node, id))?;
        }
        Ok(())
    }
    /// Delivers what `from` has sent to `to`, in order, except what is held back.
    fn deliver_but(&mut self, from: usize, to: usize, held: impl Fn(&Packet) -> bool) -> Told {
        while let Some(at) =
            self.0.net.iter().position(|packet| (packet.from, packet.to) == (from, to) && !held(packet))
        {
            self.act(Action::Deliver(at))?;
        }
        Ok(())
    }
    fn deliver(&mut self, from: usize, to: usize) -> Told {
        self.deliver_but(from, to, |_| false)
    }
    fn adopt(&mut self, node: usize) -> Told {
        let view = self.newest();
        self.act(Action::Adopt(node, view))
    }
    /// The node is cut off from mgmtd, which takes it out.
    fn lose(&mut self, node: usize) -> Told {
        self.act(Action::LeaseOut(node))?;
        self.act(Action::TakeOut(node))
    }
    fn come_back(&mut self, node: usize) -> Told {
        self.adopt(node)?;
        self.act(Action::LeaseBack(node))?;
        self.act(Action::BringBack(node))
    }
    /// Whatever `read` at a node leads to, the tail asked at once if it is dirty.
    fn read(&mut self, node: usize) -> Told {
        self.act(Action::Read(node))?;
        if self.0.waiting.is_some() { self.act(Action::QueryTail) } else { Ok(()) }
    }
    /// A session from dump to promotion, as far as it gets, with A as the predecessor.
    fn sync(&mut self, node: usize) -> Told {
        self.adopt(A)?;
        self.adopt(node)?;
        self.act(Action::SessionReady(node))?;
        self.act(Action::SendDump(node))?;
        for _ in 0..3 {
            self.deliver_but(node, A, |packet| matches!(packet.wire, Wire::Peer(_)))?;
            self.deliver_but(A, node, |packet| matches!(packet.wire, Wire::Peer(_)))?;
        }
        Ok(())
    }
    fn promote(&mut self, node: usize) -> Told {
        match self.0.membership().contains(&Action::Promote(node)) {
            true => self.act(Action::Promote(node)),
            false => Ok(()),
        }
    }
}

/// Plays it with the rules, then with one broken.
fn demands(mutant: Mutant, history: fn() -> Told) {
    history().expect("the rules hold");
    std::panic::set_hook(Box::new(|_| {}));
    let broken = std::panic::catch_unwind(|| with(Some(mutant), history));
    let _ = std::panic::take_hook();
    assert!(
        !matches!(broken, Ok(Ok(()))),
        "without the rule ({mutant:?}) nothing breaks: the history does not show it"
    );
}

#[test]
fn t4_a_reader_never_sees_what_a_power_cut_takes_back() {
    demands(Mutant::NoNotice, || {
        let mut story = Story::of(2, 1);
        story.write(0)?;
        story.deliver(A, B)?;
        story.durable(B)?; // and A, the head, has it in memory only
        story.read(B)
    });
}

#[test]
fn t2_a_new_tail_does_not_commit_what_is_durable_at_itself_alone() {
    demands(Mutant::NewTailCommitsDurable, || {
        let mut story = Story::of(3, 1);
        story.write(0)?;
        story.deliver(A, B)?;
        story.durable(B)?;
        story.lose(C)?;
        story.adopt(B)?;
        story.read(B)
    });
}

#[test]
fn t2_a_new_tail_does_not_commit_what_is_only_staged() {
    demands(Mutant::NewTailCommitsStaged, || {
        let mut story = Story::of(3, 1);
        story.write(0)?;
        story.deliver(A, B)?;
        story.lose(C)?;
        story.adopt(B)
    });
}

/// v1 is durable everywhere and committed at the tail, where it was read; the acknowledgement is on its way.
fn seen_at_the_tail(replicas: usize, writes: usize) -> Result<Story, Violation> {
    let mut story = Story::of(replicas, writes);
    story.write(0)?;
    story.durable(A)?;
    for node in 1..replicas {
        story.deliver(node - 1, node)?;
        story.durable(node)?;
    }
    story.read(replicas - 1)?;
    assert_eq!(story.0.floor, [1]);
    Ok(story)
}

#[test]
fn t3_a_new_tail_remembers_what_it_was_told_to_be_durable() {
    demands(Mutant::WatermarkCleared, || {
        let mut story = seen_at_the_tail(3, 1)?;
        story.lose(C)?;
        story.adopt(B)?;
        story.read(B)
    });
}

#[test]
fn t1_a_returning_target_waits_for_what_readers_have_seen() {
    demands(Mutant::NoNeed, || {
        let mut story = seen_at_the_tail(2, 1)?;
        // A has v1 pending; B, who committed it, goes and comes back before A hears of it.
        story.lose(B)?;
        story.come_back(B)?;
        story.sync(B)?;
        story.promote(B)?;
        story.adopt(B)?;
        story.read(B)
    });
}

#[test]
fn t7_a_tail_that_is_not_synced_answers_no_queries() {
    demands(Mutant::UnsyncedTailAnswers, || {
        let mut story = seen_at_the_tail(2, 1)?;
        story.lose(B)?;
        story.come_back(B)?;
        story.0.nodes[B].store = Default::default(); // its disk was exchanged
        story.adopt(A)?;
        story.adopt(B)?;
        story.read(A)?;
        story.deliver_but(A, B, |packet| !matches!(packet.wire, Wire::Peer(Msg::Query { .. })))?;
        story.deliver(B, A)
    });
}

#[test]
fn t8_messages_of_an_older_chain_version_do_not_count() {
    demands(Mutant::OldMessagesAccepted, || {
        let mut story = Story::of(2, 2);
        story.write(0)?; // forwarded to B, and late
        let late = story.0.net.pop().expect("the forward");
        story.lose(B)?;
        story.act(Action::Crash(A))?; // A never had it durable
        story.act(Action::Restart(A))?;
        story.adopt(A)?;
        story.act(Action::BringBack(A))?;
        story.adopt(A)?;
        story.come_back(B)?;
        story.sync(B)?;
        story.promote(B)?;
        story.adopt(A)?;
        story.adopt(B)?;
        story.0.net = vec![late];
        story.deliver(A, B)?;
        story.write(1)?;
        story.deliver(A, B)
    });
}

#[test]
fn t10_a_returning_target_drops_what_nobody_else_has() {
    demands(Mutant::PendingsKept, || {
        let mut story = Story::of(2, 2);
        story.write(0)?;
        story.deliver(A, B)?;
        story.durable(B)?;
        story.lose(B)?;
        story.act(Action::Crash(A))?;
        story.act(Action::Restart(A))?;
        story.adopt(A)?;
        story.act(Action::BringBack(A))?;
        story.adopt(A)?;
        story.come_back(B)?;
        story.adopt(A)?;
        story.adopt(B)?;
        story.act(Action::SessionReady(B))?;
        story.write(1)?;
        story.durable(A)?;
        story.deliver(A, B)
    });
}

#[test]
fn t11_a_late_base_does_not_overwrite_what_the_session_brought() {
    demands(Mutant::LateBaseOverwrites, || {
        let mut story = seen_at_the_tail(2, 2)?;
        story.deliver(B, A)?; // acknowledged
        story.lose(B)?;
        story.come_back(B)?;
        story.0.nodes[B].store = Default::default();
        story.adopt(A)?;
        story.adopt(B)?;
        story.act(Action::SessionReady(B))?;
        story.act(Action::SendDump(B))?;
        story.deliver(B, A)?;
        let base = story
            .0
            .net
            .iter()
            .find(|packet| matches!(packet.wire, Wire::Word { .. }))
            .cloned()
            .expect("the base");
        story.deliver(A, B)?;
        story.write(1)?;
        story.durable(A)?;
        story.deliver(A, B)?;
        story.durable(B)?;
        story.deliver(B, A)?; // acknowledged too
        story.deliver(A, B)?;
        story.deliver(B, A)?;
        story.promote(B)?;
        story.0.net = vec![base];
        story.deliver(A, B)?;
        story.adopt(B)?;
        story.read(B)
    });
}

#[test]
fn t5_the_query_goes_to_the_tail_of_the_path_not_to_the_last_serving_replica() {
    demands(Mutant::QueryLastServing, || {
        let mut story = Story::of(3, 1);
        story.lose(C)?;
        story.adopt(A)?;
        story.adopt(B)?;
        story.come_back(C)?;
        for node in [A, B, C] {
            story.adopt(node)?;
        }
        story.act(Action::SessionReady(C))?;
        story.act(Action::SendDump(C))?;
        story.deliver(C, B)?;
        story.deliver(B, C)?;
        story.promote(C)?;
        // v1 goes down the old path [A, B, C]; C commits it, is promoted, and is read. A and B know nothing of that yet.
        let old = story.newest() - 1;
        story.act(Action::Write { write: 0, view: old })?;
        story.durable(A)?;
        story.deliver(A, B)?;
        story.durable(B)?;
        story.deliver(B, C)?;
        story.durable(C)?;
        story.adopt(C)?;
        story.act(Action::Read(C))?;
        assert_eq!(story.0.floor, [1]);
        story.read(A)?;
        story.deliver_but(A, B, |packet| !matches!(packet.wire, Wire::Peer(Msg::Query { .. })))?;
        story.deliver_but(A, C, |packet| !matches!(packet.wire, Wire::Peer(Msg::Query { .. })))?;
        story.deliver_but(B, A, |packet| !matches!(packet.wire, Wire::Peer(Msg::QueryReply { .. })))
    });
}

#[test]
fn t17_a_retry_after_the_head_was_lost_reaches_the_first_application() {
    let history = || -> Told {
        let mut story = seen_at_the_tail(2, 1)?;
        story.lose(A)?;
        story.adopt(B)?;
        story.write(0)?; // the client never heard of its first try
        assert_eq!(story.0.nodes[B].store.committed_contents(), [1], "applied once");
        story.act(Action::Read(B))
    };
    history().expect("the rules hold");
}

#[test]
fn t17_tags_survive_a_resync() {
    let history = || -> Told {
        let mut story = seen_at_the_tail(2, 1)?;
        story.lose(B)?;
        story.adopt(A)?; // alone, it commits
        story.come_back(B)?;
        story.0.nodes[B].store = Default::default();
        story.sync(B)?;
        story.promote(B)?;
        story.adopt(B)?;
        story.adopt(A)?;
        story.lose(A)?;
        story.adopt(B)?;
        story.write(0)?;
        assert_eq!(story.0.nodes[B].store.committed_contents(), [1], "applied once");
        story.act(Action::Read(B))
    };
    history().expect("the rules hold");
}

#[test]
fn t19_a_sole_replica_that_returns_commits_its_durable_pendings() {
    let history = || -> Told {
        let mut story = seen_at_the_tail(2, 1)?;
        story.act(Action::Crash(A))?;
        story.act(Action::Crash(B))?; // the commit mark that the reader saw is gone with the power
        story.act(Action::TakeOut(A))?;
        story.act(Action::TakeOut(B))?;
        story.act(Action::Restart(B))?;
        story.adopt(B)?;
        story.act(Action::BringBack(B))?;
        story.adopt(B)?;
        story.act(Action::Read(B))?;
        assert_eq!(story.0.nodes[B].store.committed_contents(), [1]);
        Ok(())
    };
    history().expect("the rules hold");
}

#[test]
fn a_retry_attaches_to_the_pending_write() {
    demands(Mutant::RetryAnsweredAtOnce, || {
        let mut story = Story::of(2, 1);
        story.write(0)?;
        story.write(0)
    });
}

#[test]
fn a_dirty_read_is_not_answered_from_the_local_version() {
    demands(Mutant::DirtyReadLocal, || {
        let mut story = seen_at_the_tail(3, 1)?;
        let head = &mut story.0.nodes[A];
        let version = head.replica.view().version;
        let decision = head.replica.read(catena_craq::ReadId(99), version, world::CHUNK, &head.store);
        if decision != ReadDecision::Wait {
            return Err("the head answers at once".into());
        }
        head.replica.cancel_read(catena_craq::ReadId(99), world::CHUNK);
        story.read(A)
    });
}

#[test]
fn a_gap_is_refused_and_sent_again() {
    demands(Mutant::GapFilled, || {
        let mut story = Story::of(2, 2);
        story.write(0)?;
        story.write(1)?;
        story.act(Action::Lose(0))?;
        story.deliver(A, B)?;
        story.durable(A)?;
        story.durable(B)?;
        story.deliver(B, A)?;
        story.deliver(A, B)?;
        story.durable(B)?;
        story.deliver(A, B)?;
        story.deliver(B, A)?;
        if story.0.nodes[B].store.committed_contents() != [1, 2] {
            return Err(format!("B has {:?}", story.0.nodes[B].store.committed_contents()));
        }
        Ok(())
    });
}
