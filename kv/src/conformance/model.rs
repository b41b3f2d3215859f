//! One transaction after another against a plain map: reads over own writes in every combination.

use std::sync::Arc;

use crate::conformance::history::{Map, Op};
use crate::conformance::{Case, Draws};
use crate::{RangeQuery, USER_KEY_END};

/// Every read agrees with the map, and so does what is committed.
pub async fn random_transactions_agree_with_a_model(case: Arc<Case>) {
    let draws = Draws::new(2024);
    let mut map = Map::new();
    for round in 0..150 {
        let tx = case.begin();
        let mut inside = map.clone();
        for _ in 0..draws.below(40) {
            let mut op = Op::draw(&draws, 24);
            op.run(&tx).await.unwrap();
            if let Err(wrong) = op.replay(&mut inside, false) {
                panic!("round {round}: {wrong}");
            }
        }
        if draws.below(5) > 0 {
            tx.commit().await.unwrap();
            map = inside;
        }
        let page = case.begin().get_range(RangeQuery::new("", USER_KEY_END).target_bytes(0)).await.unwrap();
        let found: Map = page.items.into_iter().map(|item| (item.key, item.value)).collect();
        assert_eq!(found, map, "round {round}");
    }
}
