//! Every call with its refusals, as text (`scripts/`).

mod common;

macro_rules! scripts {
    ($($name:ident)*) => {
        $(#[tokio::test(start_paused = true)]
        async fn $name() {
            let name = concat!("scripts/", stringify!($name), ".txt");
            common::script::run(name, include_str!(concat!("scripts/", stringify!($name), ".txt"))).await;
        })*
    };
}

scripts! { paths permissions rename links times xattrs layouts contents }
