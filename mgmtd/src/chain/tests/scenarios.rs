//! `testdata/chains.txt`: what happens, line by line, and what the chain becomes. Lines that begin with `>` are input, the rest is
//! output; run with `UPDATE_SNAPSHOTS=1` to write the output again, and read the difference.

use std::collections::BTreeMap;

use super::super::*;

struct World {
    chain: ChainState,
    news: BTreeMap<TargetId, News>,
    contact: BTreeMap<TargetId, Contact>,
}

fn target(word: &str) -> TargetId {
    TargetId(word.strip_prefix('t').and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("target: {word}")))
}

impl World {
    fn new(line: &str) -> World {
        let members = line
            .split(',')
            .map(|member| {
                let (id, state) = member.trim().split_once(' ').expect("`t1 serving`");
                let state = match state {
                    "serving" => PublicState::Serving,
                    "syncing" => PublicState::Syncing,
                    "waiting" => PublicState::Waiting,
                    "lastsrv" => PublicState::Lastsrv,
                    "offline" => PublicState::Offline,
                    other => panic!("state: {other}"),
                };
                Member { id: target(id), state, joined_at: ChainVersion(1) }
            })
            .collect::<Vec<_>>();
        let unheard =
            News { local: LocalState::Unspecified, joined_at: ChainVersion(0), original_disk: true };
        World {
            news: members.iter().map(|member| (member.id, unheard)).collect(),
            contact: members.iter().map(|member| (member.id, Contact::Heard)).collect(),
            chain: ChainState { version: ChainVersion(1), members },
        }
    }

    fn happens(&mut self, event: &str) {
        let (ids, what) = event.rsplit_once(' ').expect("`t1 lost`");
        for id in ids.split_whitespace().map(target) {
            let news = self.news.get_mut(&id).expect("a target of the chain");
            match what.split_once('@').unwrap_or((what, "")) {
                ("lost", _) => *news = News { original_disk: news.original_disk, ..News::LOST },
                ("unheard", _) => news.local = LocalState::Unspecified,
                ("online", _) => news.local = LocalState::Online,
                ("up-to-date", session) => {
                    news.local = LocalState::UpToDate;
                    news.joined_at = ChainVersion(session.parse().expect("`up-to-date@4`"));
                }
                ("exchanged", _) => news.original_disk = false,
                ("silent", _) => drop(self.contact.insert(id, Contact::Silent)),
                ("heard", _) => drop(self.contact.insert(id, Contact::Heard)),
                other => panic!("event: {other:?}"),
            }
        }
    }

    fn settle(&mut self) -> String {
        let news = |id| self.news[&id];
        if held(&self.chain, news, |id| self.contact[&id]) {
            return "held".into();
        }
        match settle(&self.chain, news) {
            Some(next) => {
                self.chain = next;
                self.chain.to_string()
            }
            None => "no change".into(),
        }
    }
}

#[test]
fn scenarios() {
    let script =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/chains.txt")).unwrap();
    let mut world = None;
    let mut output = String::new();
    for line in script.lines() {
        let Some(input) = line.strip_prefix('>') else {
            if line.starts_with('#') || line.is_empty() {
                output += &format!("{line}\n");
            }
            continue;
        };
        let input = input.trim();
        output += &format!("> {input}\n");
        if let Some(chain) = input.strip_prefix("chain ") {
            world = Some(World::new(chain));
            continue;
        }
        let world: &mut World = world.as_mut().expect("a scenario begins with `> chain`");
        input.split(',').for_each(|event| world.happens(event.trim()));
        output += &format!("  {}\n", world.settle());
    }
    crate::testing::snapshot("chains.txt", &output);
}
