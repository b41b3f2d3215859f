//! The namespace half of the workload: one client's directory, in which each acknowledged change must stand.

use std::collections::BTreeMap;

use catena_client::{Catena, RenameMode, Status};
use rand::Rng;
use rand::rngs::StdRng;

/// Names in use at most.
const NAMES: u32 = 24;

/// A directory that one client works in, and what is in it: names and the contents of small files.
pub struct Names {
    directory: String,
    files: BTreeMap<String, Vec<u8>>,
    made: u32,
}

impl Names {
    pub async fn make(catena: &Catena, client: usize) -> Result<Names, String> {
        let directory = format!("/names-{client}");
        catena.mkdir(&*directory, 0o755).await.map_err(|error| error.to_string())?;
        Ok(Names { directory, files: BTreeMap::new(), made: 0 })
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }

    fn any(&self, random: &mut StdRng) -> Option<String> {
        let at = random.random_range(0..self.files.len().max(1));
        self.files.keys().nth(at).cloned()
    }

    /// One change or question. A disk that is full may refuse a small file's contents: then it is not there, or empty.
    pub async fn step(&mut self, catena: &Catena, random: &mut StdRng) -> Result<bool, String> {
        let wrong = |what: &str, error: catena_client::Error| format!("{what}: {error}");
        let name = format!("n{}", random.random_range(0..NAMES));
        match random.random_range(0..10) {
            0..4 => {
                self.made += 1;
                let contents =
                    format!("{name} as of {}\n", self.made).into_bytes().repeat(1 + self.made as usize % 40);
                let path = self.path(&name);
                match catena.write(&*path, &contents).await {
                    Ok(()) => drop(self.files.insert(name, contents)),
                    Err(error) if error.status() == Status::NoSpace => {
                        // Truncated and partly written, perhaps: taken away, so that what is there is known.
                        match catena.remove(&*path).await {
                            Ok(()) => {}
                            Err(error) if error.status() == Status::NotFound => {}
                            Err(error) => return Err(wrong(&format!("remove {path}"), error)),
                        }
                        self.files.remove(&name);
                        return Ok(false);
                    }
                    Err(error) => return Err(wrong(&format!("write {path}"), error)),
                }
            }
            4..6 => {
                let Some(from) = self.any(random) else { return Ok(true) };
                let (a, b) = (self.path(&from), self.path(&name));
                catena
                    .rename(&*a, &*b, RenameMode::Replace)
                    .await
                    .map_err(|error| wrong(&format!("rename {a} {b}"), error))?;
                if let Some(contents) = self.files.remove(&from) {
                    self.files.insert(name, contents);
                }
            }
            6 => {
                let Some(name) = self.any(random) else { return Ok(true) };
                let path = self.path(&name);
                catena.remove(&*path).await.map_err(|error| wrong(&format!("remove {path}"), error))?;
                self.files.remove(&name);
            }
            7 => {
                let path = self.path(&format!("d{}", random.random_range(0..4)));
                catena.mkdir(&*path, 0o755).await.map_err(|error| wrong(&format!("mkdir {path}"), error))?;
                catena.remove_dir(&*path).await.map_err(|error| wrong(&format!("rmdir {path}"), error))?;
            }
            8 => {
                let path = self.path(&name);
                let there =
                    catena.exists(&*path).await.map_err(|error| wrong(&format!("stat {path}"), error))?;
                if there != self.files.contains_key(&name) {
                    return Err(format!("{path}: {}", if there { "is there again" } else { "is gone" }));
                }
            }
            _ => {
                let Some(name) = self.any(random) else { return Ok(true) };
                self.check(catena, &name).await?;
            }
        }
        Ok(true)
    }

    async fn check(&self, catena: &Catena, name: &str) -> Result<(), String> {
        let path = self.path(name);
        let contents = catena.read(&*path).await.map_err(|error| format!("read {path}: {error}"))?;
        if Some(&contents) != self.files.get(name) {
            let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
            return Err(format!(
                "{path}: holds {} bytes {:?}, not {} bytes {:?}",
                contents.len(),
                text(&contents),
                self.files.get(name).map_or(0, Vec::len),
                self.files.get(name).map(|bytes| text(bytes)),
            ));
        }
        Ok(())
    }

    /// Everything is there, and nothing else.
    pub async fn verify(&self, catena: &Catena) -> Result<(), String> {
        let listed =
            catena.read_dir(&*self.directory, false).collect().await.map_err(|error| error.to_string())?;
        let listed: Vec<String> = listed.iter().map(|entry| entry.name_text().into_owned()).collect();
        let expected: Vec<String> = self.files.keys().cloned().collect();
        let mut sorted = listed;
        sorted.sort();
        if sorted != expected {
            return Err(format!("{}: has {sorted:?}, not {expected:?}", self.directory));
        }
        for name in &expected {
            self.check(catena, name).await?;
        }
        Ok(())
    }
}
