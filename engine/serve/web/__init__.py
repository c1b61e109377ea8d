"""The web service around an `Engine`: `app.create_app` joins the routes of its APIs."""
