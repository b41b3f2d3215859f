//! `if_cfg_api_versions!`, as the `foundationdb` crate uses it: code for some API versions only. There is one version here, 730, so each
//! condition is decided where it stands.

/// `(min = N => code)`, `(min = N => { code } else { code })`, and the same with `max = M`.
#[macro_export]
macro_rules! if_cfg_api_versions {
    (min = 510, max = 600 => { $($then:tt)* } else { $($else:tt)* }) => {{ $($else)* }};
    (min = 510, max = 600 => $($then:tt)*) => {};
    (min = 620 => { $($then:tt)* } else { $($else:tt)* }) => {{ $($then)* }};
    (min = 620 => $($then:tt)*) => { $($then)* };
    (min = 700 => { $($then:tt)* } else { $($else:tt)* }) => {{ $($then)* }};
    (min = 700 => $($then:tt)*) => { $($then)* };
    (min = 710 => { $($then:tt)* } else { $($else:tt)* }) => {{ $($then)* }};
    (min = 710 => $($then:tt)*) => { $($then)* };
    (min = 730 => { $($then:tt)* } else { $($else:tt)* }) => {{ $($then)* }};
    (min = 730 => $($then:tt)*) => { $($then)* };
    ($($other:tt)*) => {
        compile_error!("a condition on the API version that kv/fdb/sys does not know yet: decide it there for 730");
    };
}
