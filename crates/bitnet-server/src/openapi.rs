//! The description of all routes, made from their types, and the page that shows it.

use crate::anthropic::RefusalBody;
use crate::error::ErrorBody;
use crate::ollama::FailureBody;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme,
};
use utoipa::{Modify, OpenApi};
use utoipa_swagger_ui::SwaggerUi;

#[derive(OpenApi)]
#[openapi(
    info(title = "bitnet", description = "1.58-bit language models over HTTP: OpenAI's, Anthropic's, llama.cpp's and Ollama's routes."),
    components(schemas(ErrorBody, RefusalBody, FailureBody)),
    modifiers(&KeysOptional),
)]
pub(crate) struct Document;

struct KeysOptional;

impl Modify for KeysOptional {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let header = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("x-api-key")));
        components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        components.add_security_scheme("x-api-key", header);
        let no_scopes = || Vec::<String>::new();
        document.security = Some(vec![
            SecurityRequirement::default(),
            SecurityRequirement::new("bearer", no_scopes()),
            SecurityRequirement::new("x-api-key", no_scopes()),
        ]);
    }
}

/// `/openapi.json`, and Swagger UI under `/docs`.
pub(crate) fn pages(document: utoipa::openapi::OpenApi) -> SwaggerUi {
    SwaggerUi::new("/docs").url("/openapi.json", document)
}
