# The demo in a container: docker build -t isobasin . && docker run --rm isobasin
# To keep what it writes: docker run --rm -v "$PWD/demo-output:/home/isobasin/demo-output" isobasin
FROM python:3.13-slim

# torch without CUDA; for a GPU, leave the index out and start from an image that has its driver's libraries.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

WORKDIR /src
COPY . .
RUN pip install --extra-index-url "$TORCH_INDEX" --constraint requirements.lock ".[demo]" \
    && useradd --create-home isobasin

USER isobasin
WORKDIR /home/isobasin
ENTRYPOINT ["isobasin"]
CMD ["demo"]
