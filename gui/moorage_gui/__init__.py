"""The tray icon and the window: one client of the backend's control API among others, and of the engine's own API."""
