//! A model and how to load it.

use std::sync::Arc;

use ondine_hub::Hub;
use ondine_runtime::backend::LoadOptions;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::{Limits, Model, Session};

use crate::{Chat, Error};

/// A model that is ready to be loaded, once for every conversation.
#[derive(Clone)]
pub struct Engine {
    model: Arc<Model>,
    options: LoadOptions,
}

impl Engine {
    /// Opens the model `name`: a name of the registry (downloaded when it is not here and the feature
    /// `pull` is on), a `.gguf` file, or a directory.
    ///
    /// # Errors
    /// When the model is not found, cannot be downloaded, or is damaged.
    pub fn open(name: &str) -> Result<Self, Error> {
        let found = Hub::from_environment()?.resolve(name, &ondine_hub::Silent)?;
        let model = Model::open(&found.path, &Limits::default())?;
        Ok(Engine {
            model: Arc::new(model),
            options: LoadOptions {
                screened_head: true,
                ..LoadOptions::default()
            },
        })
    }

    /// Loads with `options` from now on: context length, threads, type of the keys and values.
    #[must_use]
    pub fn with_options(mut self, options: LoadOptions) -> Self {
        self.options = options;
        self
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Loads the weights and begins an empty session, for prompts without a chat template.
    ///
    /// # Errors
    /// When no backend runs here, or the model does not fit.
    pub fn session(&self) -> Result<Session, Error> {
        let backend = CpuBackend::from_environment()?;
        let decoder = self.model.load(&backend, &self.options)?;
        Ok(Session::new(self.model.clone(), decoder))
    }

    /// Loads the weights and begins a conversation.
    ///
    /// # Errors
    /// As [`Engine::session`].
    pub fn chat(&self) -> Result<Chat, Error> {
        Ok(Chat::new(self.session()?))
    }
}
