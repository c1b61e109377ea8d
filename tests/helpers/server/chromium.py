"""What a person does with the page: opens it, drops files, draws."""

import base64
import io

from PIL import Image


def opened(context, address):
    """Return the page, once it has the server's options. An error in its scripts fails the test that causes it."""
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
    page.goto(address)
    page.locator("html[data-ready]").wait_for(state="attached")
    return page


def png_of(image, **options):
    """Return the bytes of an image as a PNG."""
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def decoded(data_url):
    """Return the image in a data URL."""
    return Image.open(io.BytesIO(base64.b64decode(data_url.partition(",")[2])))


def drop(page, selector, data, name="image.png"):
    """Drop a PNG from the desktop on an element."""
    transfer = page.evaluate_handle(
        """([data, name]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
            return transfer;
        }""",
        [base64.b64encode(data).decode(), name],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event(selector, event, {"dataTransfer": transfer})


def posted(page, press):
    """Return the body of the job that `press` submits."""
    with page.expect_request(lambda request: request.method == "POST" and request.url.endswith("/jobs")) as sent:
        press()
    return sent.value.post_data_json
