//! Finding the library and its functions.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use libloading::Library;

use crate::Functions;

/// What the dynamic linker is asked for when no path is given.
const NAME: &str = "libfdb_c.so";

/// The library's functions, once it is loaded. It is never unloaded: its network thread may be running.
static FUNCTIONS: OnceLock<Functions> = OnceLock::new();
/// The path that was loaded; held while loading.
static LOADED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Why the client library cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// There is none, or it is none.
    #[error(
        "FoundationDB's client library {} could not be loaded ({reason}): install the package foundationdb-clients, version 7.3, or name \
         the file in `store.library`",
        path.display()
    )]
    Missing {
        /// The file, or the name that was searched for.
        path: PathBuf,
        /// The dynamic linker's words.
        reason: String,
    },
    /// It is something else, or much older.
    #[error(
        "{} has no function {function}: it is no client library of FoundationDB 7.3; install foundationdb-clients 7.3",
        path.display()
    )]
    Function {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        function: &'static str,
    },
    /// Another one is loaded already; a process can have one.
    #[error("FoundationDB's client library was loaded from {} already; a process has one", loaded.display())]
    Other {
        /// Where from.
        loaded: PathBuf,
    },
}

/// Loads the client library: `path`, or what the dynamic linker finds under its name. Does nothing when it is loaded already.
pub fn load(path: Option<&Path>) -> Result<(), LoadError> {
    let path = path.unwrap_or(Path::new(NAME));
    let mut loaded = LOADED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    match &*loaded {
        Some(other) if other == path => return Ok(()),
        Some(other) => return Err(LoadError::Other { loaded: other.clone() }),
        None => {}
    }
    // SAFETY: the library's initialisers run. That the file is FoundationDB's is the operator's word.
    let library = unsafe { Library::new(path) }
        .map_err(|error| LoadError::Missing { path: path.to_owned(), reason: error.to_string() })?;
    // Never unloaded, so that the functions are there for ever.
    let library: &'static Library = Box::leak(Box::new(library));
    // SAFETY: `Functions` has the signatures of API version 730, and the functions that it names do not change theirs.
    let functions = unsafe { Functions::find(library) }
        .map_err(|function| LoadError::Function { path: path.to_owned(), function })?;
    let _ = FUNCTIONS.set(functions);
    *loaded = Some(path.to_owned());
    Ok(())
}

/// The functions. Nothing can be called before [`load`]; see the crate's documentation.
pub(crate) fn functions() -> &'static Functions {
    FUNCTIONS.get().unwrap_or_else(|| {
        eprintln!("libfdb_c was called before it was loaded: a mistake in this program");
        std::process::abort()
    })
}

/// Declares C functions: a table of what [`load`] found, and a function of each name that calls through it.
macro_rules! declare {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)*) => {
        pub(crate) struct Functions {
            $($name: unsafe extern "C" fn($($type),*) $(-> $result)?,)*
        }

        impl Functions {
            /// Looks every function up; the error is the first that is not there.
            unsafe fn find(library: &'static libloading::Library) -> Result<Functions, &'static str> {
                Ok(Functions {
                    $($name: *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }
                        .map_err(|_| stringify!($name))?,)*
                })
            }
        }

        $(#[doc = concat!("`", stringify!($name), "` of `fdb_c.h`.")]
        ///
        /// # Safety
        /// The header's conditions, and that the library is loaded.
        #[allow(clippy::too_many_arguments)]
        pub unsafe fn $name($($argument: $type),*) $(-> $result)? {
            unsafe { (library::functions().$name)($($argument),*) }
        })*
    };
}
pub(crate) use declare;
