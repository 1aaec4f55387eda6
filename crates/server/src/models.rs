//! The models that a server offers: the first is loaded at the start, the others when they are first asked for.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hyper::StatusCode;

use crate::engine::Engine;
use crate::error::ApiError;

/// Loads a model when it is first asked for; the error is one sentence.
pub type Loader = Box<dyn Fn() -> Result<Engine, String> + Send + Sync>;

/// A model on offer.
pub struct Offer {
    /// The name that requests use.
    pub name: String,
    /// When its file was last changed.
    pub modified: SystemTime,
    /// Bytes of its file.
    pub bytes: u64,
    /// What loads it.
    pub loader: Loader,
}

/// The models, the default one first.
pub struct Models {
    offers: Vec<Slot>,
}

struct Slot {
    offer: Offer,
    engine: Mutex<Option<Arc<Engine>>>,
}

impl Models {
    /// The models of `offers`, of which the first is the default.
    pub fn new(offers: Vec<Offer>) -> Self {
        let slot = |offer| Slot {
            offer,
            engine: Mutex::new(None),
        };
        Models {
            offers: offers.into_iter().map(slot).collect(),
        }
    }

    /// All that are on offer.
    pub fn offers(&self) -> impl Iterator<Item = &Offer> {
        self.offers.iter().map(|slot| &slot.offer)
    }

    /// Those that are loaded, with their names.
    pub fn loaded(&self) -> Vec<(String, Arc<Engine>)> {
        let slots = self.offers.iter();
        slots
            .filter_map(|slot| {
                let engine = slot.engine.lock().ok()?.clone()?;
                Some((slot.offer.name.clone(), engine))
            })
            .collect()
    }

    /// The offer of a name, or the default where none is given. Ollama's clients write `name:latest`.
    ///
    /// # Errors
    /// 404 for names that are not offered.
    pub fn find(&self, name: Option<&str>) -> Result<&Offer, ApiError> {
        self.slot(name).map(|slot| &slot.offer)
    }

    /// The engine of a model, loaded now if it was not before. Blocks while it loads.
    ///
    /// # Errors
    /// 404 for names that are not offered, 503 when it cannot be loaded.
    pub fn engine(&self, name: Option<&str>) -> Result<(String, Arc<Engine>), ApiError> {
        let slot = self.slot(name)?;
        let failed = |what: &str| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, what);
        let mut engine = slot
            .engine
            .lock()
            .map_err(|_| failed("the model failed while it was loaded; start the server again"))?;
        if engine.is_none() {
            *engine = Some(Arc::new(
                (slot.offer.loader)().map_err(|what| failed(&what))?,
            ));
        }
        let engine = engine
            .clone()
            .ok_or_else(|| failed("the model is not there"))?;
        Ok((slot.offer.name.clone(), engine))
    }

    /// Ends all engines; what runs has `grace` to finish.
    pub fn shut_down(&self, grace: Duration) {
        std::thread::scope(|scope| {
            for (_, engine) in self.loaded() {
                scope.spawn(move || engine.shut_down(grace));
            }
        });
    }

    fn slot(&self, name: Option<&str>) -> Result<&Slot, ApiError> {
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return self
                .offers
                .first()
                .ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "no model is offered"));
        };
        let plain = name.strip_suffix(":latest").unwrap_or(name);
        let found = self
            .offers
            .iter()
            .find(|slot| slot.offer.name == name || slot.offer.name == plain);
        found.ok_or_else(|| {
            let names: Vec<&str> = self.offers().map(|offer| offer.name.as_str()).collect();
            let shown: String = name.chars().take(100).collect();
            ApiError {
                param: Some("model".into()),
                ..ApiError::new(
                    StatusCode::NOT_FOUND,
                    format!(
                        "the model {shown:?} is not offered here; use one of {}",
                        names.join(", ")
                    ),
                )
                .with_code("model_not_found")
            }
        })
    }
}
