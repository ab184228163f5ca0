//! The chat page: `GET /` and what it is made of, all from the binary.

use axum::Router;
use axum::http::HeaderName;
use axum::http::header;
use axum::routing::get;

/// Nothing comes from elsewhere, nothing is run but the page's own files, and nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Route, type and text of each file.
const FILES: [(&str, &str, &str); 7] = [
    ("/", "text/html; charset=utf-8", include_str!("../assets/chat/index.html")),
    ("/chat/chat.css", "text/css; charset=utf-8", include_str!("../assets/chat/chat.css")),
    ("/chat/chat.js", "text/javascript; charset=utf-8", include_str!("../assets/chat/chat.js")),
    ("/chat/client.js", "text/javascript; charset=utf-8", include_str!("../assets/chat/client.js")),
    ("/chat/markdown.js", "text/javascript; charset=utf-8", include_str!("../assets/chat/markdown.js")),
    ("/chat/store.js", "text/javascript; charset=utf-8", include_str!("../assets/chat/store.js")),
    ("/chat/icon.svg", "image/svg+xml", include_str!("../assets/chat/icon.svg")),
];

/// Whether a route is one of the page's.
pub(crate) fn is_page(route: &str) -> bool {
    FILES.iter().any(|(path, ..)| *path == route)
}

/// The page's routes.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        let headers: [(HeaderName, &'static str); 5] = [
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            // A new server has a new page.
            (header::CACHE_CONTROL, "no-cache"),
        ];
        router.route(path, get(move || async move { (headers, text) }))
    })
}
